"""Is a candidate faithful? Its outputs against eager's, then its accuracy on the test samples."""

from __future__ import annotations

from collections.abc import Mapping

from upshift.inference.accuracy import CONFIDENCE, Decision, confidences, decide
from upshift.inference.backend import Array
from upshift.inference.candidate import Candidate
from upshift.inference.config import Samples
from upshift.inference.parity import Parity, compare, num_not_finite
from upshift.inference.reference import Reference
from upshift.inference.structure import leaf_paths


class Verifier:
    """Judges candidates of one search.

    Args:
        reference: Eager's outputs.
        samples: What to compare on and judge by.
        max_drop: The budget for the accuracy.
        num_candidates: By tier: all that may be judged, whose bounds must hold together.
    """

    def __init__(
        self, reference: Reference, samples: Samples, *, max_drop: float, num_candidates: Mapping[str, int]
    ) -> None:
        self._reference, self._samples = reference, samples
        self._max_drop, self._confidences = max_drop, confidences(num_candidates)

    def judge_built(self, candidate: Candidate) -> tuple[Parity, Decision]:
        """Judge one that was just built, by its outputs on the selection samples.

        Raises:
            ChildFailure: It cannot be run.
        """
        outputs = candidate.run("selection", len(self._samples.selection))
        parity = self._compare(self._reference.selection, outputs)
        return parity, self._decide(candidate, parity)

    def judge_reloaded(self, candidate: Candidate) -> Decision:
        """Judge one that was loaded from its artifact, by its outputs on the test samples.

        Raises:
            ChildFailure: It cannot be run.
        """
        outputs = candidate.run("test", len(self._reference.test[0]))
        return self._decide(candidate, self._compare(self._reference.test, outputs))

    def _compare(self, expected: list[Array], received: list[Array]) -> Parity:
        signature = self._reference.signature
        return compare(expected, received, paths=leaf_paths(signature.tree), logits=signature.logits)

    def _decide(self, candidate: Candidate, parity: Parity) -> Decision:
        expected, scores = self._reference.scores, None
        if expected is not None and parity.problem is None:
            scores = candidate.run("test", len(expected), leaf=self._reference.signature.logits)[0]
            if num_bad := num_not_finite(scores):
                parity = Parity(problem=f"class scores are NaN or infinite for {num_bad} test samples")
        return decide(
            parity,
            tier=candidate.info.tier,
            reference=expected,
            outputs=scores,
            labels=self._samples.test_labels,
            max_drop=self._max_drop,
            # The reference itself, judged anew after it was saved, is no candidate.
            confidence=self._confidences.get(candidate.info.tier, CONFIDENCE),
        )
