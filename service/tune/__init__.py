"""``saccade tune``: measures how many streams and which batch serve each model best here."""
