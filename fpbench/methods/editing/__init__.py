"""What the editors share: key statistics, null space, target values, the closed-form write."""
