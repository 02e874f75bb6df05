"""The words of the product: types, errors and settings. Depends on nothing else of the house."""
