"""What the detectors look up."""

IBAN_LENGTHS = {
    country: length
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
    for country in countries.split()
}
"""Characters of an account number by country (SWIFT's IBAN registry)."""

_DOMAINS = """
academy aero agency app biz blog cloud club com company coop design dev digital edu email gmbh gov group health info int
jobs life live media mil mobi museum name net news online org pro school services shop site software solutions store
studio systems team tech travel university work world xyz
"""
TOP_LEVEL_DOMAINS = frozenset(_DOMAINS.split())
"""Common ones of more than two letters. Any word could be an attribute in code: a@b.mean."""

_NO_PASSWORDS = """
also always any bool boolean bytes case-sensitive changed char correct different empty encrypted expired false field
hash hashed hidden incorrect input insecure integer invalid login long masked missing needed never none not null
number object only optional passphrase passwd password private protected public pwd required reset safe same secret
secure set short stored str string strong text token too true unknown unset user username valid value varchar very
weak wrong
"""
NO_PASSWORDS = frozenset(_NO_PASSWORDS.split())
"""Words that stand after "password:" or "password is" without being one."""
