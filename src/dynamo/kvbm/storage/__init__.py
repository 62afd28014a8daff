"""The tiers below host memory."""
