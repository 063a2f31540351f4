"""Training of the tiny encoders that the `scenes` cascade comes with.

    negatives    scenes changed in one respect            corpus     batches of captions and pictures
    grounding    what words and wholes mean, as labels    contrastive, denoising   the losses of CLIP and T5
    fitting      the loop                                 measuring  accuracies on held-out scenes
    bundle       one encoder from nothing to its folder   together   both at once
"""
