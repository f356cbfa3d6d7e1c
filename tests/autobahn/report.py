"""Results of the Autobahn suite: `count SPEC` prints the number of cases in a specification,
`sum DIRECTORY` summarises the reports."""

import json
import os
import sys

# The suite's results for an end that is correct, or that the RFC leaves open.
FINE = ("OK", "NON-STRICT", "INFORMATIONAL")


def count(spec):
    from autobahntestsuite.case import CaseBasename, CaseCategories, CaseSetname, CaseSubCategories, Cases
    from autobahntestsuite.caseset import CaseSet

    with open(spec) as text:
        spec = json.load(text)
    cases = CaseSet(CaseSetname, CaseBasename, Cases, CaseCategories, CaseSubCategories)
    return len(cases.parseSpecCases(spec))


def sum_up(directory):
    for name in sorted(os.listdir(directory)):
        index = os.path.join(directory, name, "index.json")
        if not os.path.exists(index):
            continue
        with open(index) as text:
            cases = json.load(text)["upstreamproxy"]
        by_number = sorted(cases.items(), key=lambda case: [int(part) for part in case[0].split(".")])
        words = [case["behavior"] for case in cases.values()]
        counts = ", ".join("%d %s" % (words.count(word), word) for word in sorted(set(words)))
        print("%s: %d cases: %s" % (name, len(cases), counts))
        for number, case in by_number:
            if case["behavior"] != "OK" or case["behaviorClose"] not in FINE:
                code = case["remoteCloseCode"]
                print("  %s: %s, close %s (%s)" % (number, case["behavior"], case["behaviorClose"], code))


if __name__ == "__main__":
    if sys.argv[1] == "count":
        print(count(sys.argv[2]))
    else:
        sum_up(sys.argv[2])
