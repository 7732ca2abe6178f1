"""The field test, on a user's own GPU and model: what this project cannot measure without one (docs/field_test.md)."""
