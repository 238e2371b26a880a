"""Where inversion starts: the mean w of the class that a classifier predicts, else of what is known of the target."""

from __future__ import annotations

from typing import Any, Protocol, cast

import torch
from torch import Tensor

from bench.datasets import ImageDataset, prompt
from bench.inversion import MEAN_SAMPLES, drawn_classes, has_mapping_network, mean_w
from bench.sampling import reads_prompts, standin_text_features
from models.layers import one_hot

IMAGENET_CLASSES = 1000


class Classifier(Protocol):
    """A network that tells the classes of ImageNet apart."""

    name: str
    sha256: str
    official: bool

    def posterior(self, images: Tensor) -> Tensor:
        """Probabilities `[N, 1000]` of uint8 images `[N, 3, H, W]`."""
        ...


class Starts:
    """The starts of the images of a data set, for one generator.

    A class-conditional generator of 1000 classes is taken for one of ImageNet: the classes of its 10,000 samples are
    drawn from what the classifier says of the target. A BigGAN has no w to average; it starts from z = 0 and the
    likeliest class. Without classifier it is the target's own class; a text-conditional generator has its text.
    """

    def __init__(
        self, generator: Any, dataset: ImageDataset, classifier: Classifier | None, num_samples: int = MEAN_SAMPLES
    ) -> None:
        self.generator, self.dataset, self.num_samples = generator, dataset, num_samples
        predicts = generator.conditioning == "class" and generator.num_classes == IMAGENET_CLASSES
        self.classifier = classifier if predicts else None
        self._kept: dict[int | None, Tensor] = {}  # by class

    def __call__(self, member: int, target: Tensor) -> Tensor:
        """The start `[1, 1, w_dim]` of an image of the data set, whose pixels are uint8 `[3, R, R]`, on its device."""
        if self.classifier is not None:
            return self._mean(self._predicted(self.classifier.posterior(target[None])[0], target.device), target.device)
        if self.generator.conditioning == "text":
            return self._mean(self.text(member, target.device), target.device)
        label = self.dataset.label(member) if self.generator.conditioning == "class" else None
        if label not in self._kept:
            self._kept[label] = self._mean(self._known(label, target.device), target.device)
        return self._kept[label]

    def text(self, member: int, device: torch.device) -> Tensor | None:
        """The features `[1, D]` of an image's text; None unless the generator is conditional on texts."""
        if self.generator.conditioning != "text":
            return None
        text = prompt(self.dataset, member) or ""
        if reads_prompts(self.generator):
            with torch.no_grad():
                return cast("Tensor", self.generator.text_features([text]))
        return standin_text_features(self.generator, [text], device)

    def caveats(self) -> tuple[str, ...]:
        """How the start differs from the protocol's."""
        reasons = []
        if self.classifier is not None and not self.classifier.official:
            reasons.append(f"classes predicted by {self.classifier.name}, not by the published classifier")
        if self.generator.conditioning == "class" and self.classifier is None:
            unknown = self.generator.num_classes != IMAGENET_CLASSES
            why = "the classifier knows ImageNet's only" if unknown else "the weights `deit` are not here"
            reasons.append(f"started from the known class of each target: {why}")
        return tuple(reasons)

    def _mean(self, conditions: Tensor | None, device: torch.device) -> Tensor:
        return mean_w(self.generator, conditions, self.num_samples, device)

    def _predicted(self, posterior: Tensor, device: torch.device) -> Tensor | None:
        if has_mapping_network(self.generator):
            return self._labels(drawn_classes(posterior, self.num_samples), device)
        return self._labels(posterior.argmax(dim=0, keepdim=True), device)

    def _known(self, label: int | None, device: torch.device) -> Tensor | None:
        if self.generator.conditioning != "class":
            return None
        if label is None:
            raise ValueError(f"{self.dataset.name} has no labels, and no classifier is here to predict a class")
        return self._labels(torch.tensor([label]), device)

    def _labels(self, labels: Tensor, device: torch.device) -> Tensor | None:
        return one_hot(labels, self.generator.num_classes, like=torch.empty(0, device=device))
