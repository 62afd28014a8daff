"""The request path: from an OpenAI request to token ids and back."""
