"""The search: candidates, generations, faults, records. No torch at module level, no prompts' text."""
