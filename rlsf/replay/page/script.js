"use strict";
// Search, filters, order and keys. Text from the data is only ever compared or set as text, never read as markup.
(() => {
  const find = (id) => document.getElementById(id);
  const list = find("groups");
  const groups = [...list.querySelectorAll(".group")];
  const controls = ["search", "task", "iteration", "rewards", "order"].map(find);
  const [search, task, iteration, rewards, order] = controls;
  const words = new Map(
    groups.map((group) => [
      group,
      [...group.querySelectorAll(".text")].map((text) => text.textContent).join("\n").toLowerCase(),
    ]),
  );

  function offer(select, values) {
    for (const value of values) select.add(new Option(value, value));
  }

  function spread(group) {
    return group.dataset.spread === "" ? 0 : Number(group.dataset.spread);
  }

  function fits(group) {
    if (task.value && group.dataset.task !== task.value) return false;
    if (iteration.value && group.dataset.iteration !== iteration.value) return false;
    if (rewards.value === "differ") return spread(group) > 0;
    if (rewards.value === "agree") return spread(group) === 0;
    return !rewards.value || group.dataset.rewards.split(" ").includes(rewards.value);
  }

  function apply() {
    const wanted = search.value.toLowerCase();
    let shown = 0;
    for (const group of groups) {
      group.hidden = !(fits(group) && words.get(group).includes(wanted));
      shown += !group.hidden;
    }
    find("count").textContent = `${shown} of ${groups.length} groups`;
  }

  function arrange() {
    const sorted = order.value === "spread" ? [...groups].sort((a, b) => spread(b) - spread(a)) : groups;
    list.append(...sorted);
  }

  function openAll(open) {
    for (const details of document.querySelectorAll("details.why")) details.open = open;
  }

  function go(step) {
    const visible = [...list.querySelectorAll(".group:not([hidden])")];
    const seen = (group) => group.getBoundingClientRect().bottom > 0 && group.getBoundingClientRect().top < innerHeight;
    const focused = document.activeElement.closest(".group");
    // From the group with the focus, or else from the first one that can be seen.
    let index = visible.indexOf(focused);
    if (index < 0 || !seen(focused)) index = visible.findIndex(seen) - (step > 0);
    const next = visible[Math.min(Math.max(index + step, 0), visible.length - 1)];
    if (!next) return;
    next.focus({ preventScroll: true });
    next.scrollIntoView();
    history.replaceState(null, "", `#${encodeURIComponent(next.id)}`);
  }

  function followLink() {
    let id = location.hash.slice(1);
    try {
      id = decodeURIComponent(id);
    } catch {
      return; // no link of this page
    }
    const group = find(id)?.closest(".group");
    if (!group) return;
    if (group.hidden) {
      find("tools").reset();
      arrange();
      apply();
    }
    find(id).scrollIntoView();
  }

  offer(task, [...new Set(groups.map((group) => group.dataset.task))].sort());
  offer(iteration, [...new Set(groups.map((group) => group.dataset.iteration))].sort((a, b) => b - a));
  search.addEventListener("input", apply);
  for (const control of [task, iteration, rewards]) control.addEventListener("change", apply);
  order.addEventListener("change", arrange);
  find("open").addEventListener("change", (event) => openAll(event.target.checked));
  find("tools").addEventListener("submit", (event) => event.preventDefault());
  addEventListener("beforeprint", () => openAll(true));
  addEventListener("hashchange", followLink);
  addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.matches("input, select")) {
      if (event.key === "Escape") event.target.blur();
      return;
    }
    if (event.key === "/") {
      event.preventDefault();
      search.focus();
    }
    if (event.key === "j") go(1);
    if (event.key === "k") go(-1);
  });
  find("tools").hidden = false;
  apply();
  followLink();
})();
