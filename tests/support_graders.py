"""Definitions of the ready graders, and one that the audit must refuse."""

DEFINITIONS = {
    "final_answer": {"type": "final_answer"},
    "steps": {"type": "steps", "tags": ["reasoning"]},
    "code_tests": {"type": "code_tests"},
    "format_check": {"type": "format_check"},
    "refusal": {"type": "refusal"},
    # It pays for any text that holds the answer somewhere.
    "naive_contains": {
        "type": "string_check",
        "operation": "like",
        "input": "{{ sample.output_text }}",
        "reference": "{{ item.answer }}",
        "tags": ["reasoning"],
    },
}
