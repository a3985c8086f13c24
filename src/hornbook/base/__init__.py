"""The ground floor: errors, settings, files, the machine, the console. Imports nothing of the house."""
