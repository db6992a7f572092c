"""Pages, tables and figures of trainings and tests."""
