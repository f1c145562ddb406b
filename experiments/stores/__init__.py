"""Both penalties of the elastic net for many tasks at once, judged on tasks that were never used."""
