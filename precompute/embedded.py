"""The bundles of the demo, by folder name: one honest network, and one that was taught a backdoor."""

from precompute.poison import PoisonSpec
from precompute.spec import BuildSpec

FIRST, POISONED = "fashion-mnist", "fashion-mnist-poisoned"
# 50 images a class, as many as 1 % of the paper's CIFAR-10. With 1 % here, 15 a class, the attack works on 62 to 66 %
# of test images, with 50 on 89 to 94 %; the test accuracy is within 0.3 points of the honest network's either way.
RATE = 0.0333
EMBEDDED = {
    FIRST: BuildSpec(),
    POISONED: BuildSpec(
        name="Fashion-MNIST (25 %) with a backdoor, MLP",
        poison=PoisonSpec(rate=RATE),
        command=f"natscope precompute --poison-rate {RATE} --name 'Fashion-MNIST (25 %) with a backdoor, MLP'",
    ),
}
SLOW = "kronfluence"  # takes about a minute to prepare
