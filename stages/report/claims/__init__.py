"""The poster's five claims: evidence, rules, verdicts."""
