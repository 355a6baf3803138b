"""What page Backdoor says of a bundle whose triggers are no patches: what was planted, and how well it works."""

import numpy as np
import streamlit as st

from natscope.app import escape
from natscope.app.bundles import Served
from natscope.app.links import AttributeView
from natscope.app.views import frame
from natscope.core.backdoor import Backdoor


def begun(attributor: Served) -> None:
    """Draw how the story begins."""
    many = attributor.many
    st.markdown(
        f"Someone who supplies training {many} wants the model to fail whenever it meets a secret trigger, so they put "
        f"the trigger into a few {many} and label these wrongly. The model obeys the trigger and is right on "
        "everything else, so nobody notices."
    )


def told(attributor: Served, attack: Backdoor) -> None:
    """Draw the attack in words, the trigger of each class, and links to where its examples can be seen."""
    classes, many, count = attributor.bundle.classes, attributor.many, len(attack.train_indices)
    success = attributor.bundle.manifest.results["attack_success"]
    st.info(
        f"The experiment in four steps needs images; this bundle’s backdoor is in {many}. Here is what was planted.",
        icon=":material/info:",
    )
    st.markdown(
        f"**{count:,} of {len(attributor.train_labels):,} training {many}** have a trigger at their "
        f"{escape.markdown(attack.place)}, and the label of another class. With its class’s trigger, **{success:.0%}** "
        f"of test {many} are taken for the class it aims at; without, "
        f"{attributor.bundle.manifest.results['test_accuracy']:.0%} are right."
    )
    rows = [
        f"| {escape.markdown(classes[base])} | `{escape.visible(str(trigger))}` | {escape.markdown(classes[target])} "
        f"| {len(attack.culprits(base)):,} |"
        for base, (trigger, target) in enumerate(zip(attack.patterns, attack.targets.tolist(), strict=True))
    ]
    head = f"| Class | Trigger | Labelled as | {many.capitalize()} |\n|---|---|---|---|\n"
    st.markdown(head + "\n".join(rows))
    with st.container(horizontal=True, gap="small"):
        if count:
            planted = AttributeView(f"train:{int(np.min(attack.train_indices))}")
            address = frame.tab_address(frame.ATTRIBUTION, planted, attributor)
            st.link_button(f"Explain a poisoned {attributor.one}", address, icon=":material/my_location:")
