"""Training and testing in the toolbox: stores, data set, loss, model, options, and what is changed in BasicSR."""
