"""Records, protocols, errors, configuration and seeds: the words every other folder speaks. No torch here."""
