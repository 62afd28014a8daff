"""How a request reaches an instance and its reply comes back."""
