"""What every binary writes: tables, figures, files."""
