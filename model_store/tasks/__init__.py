"""One module per task family: text -> features, logits -> answer. Trainer and server share them."""
