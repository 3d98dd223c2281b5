"""The way from a ranking to the tensors that train: orders, rules, the selection's file, and other tools' files of it."""
