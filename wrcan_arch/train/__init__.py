"""Training and testing in the toolbox: options, loss, model, results, and what is changed in BasicSR."""
