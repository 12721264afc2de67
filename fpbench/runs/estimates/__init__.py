"""What a run will take before it starts: time, memory and disk, and what each figure rests on."""
