"""What a person, a policy or the API may ask for."""
