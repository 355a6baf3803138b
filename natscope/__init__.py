"""Which training examples does a prediction owe its certainty to, and how much, in nats?"""
