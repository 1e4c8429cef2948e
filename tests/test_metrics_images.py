"""Measurements against their definitions, computed a second time in NumPy."""

import warnings

import numpy as np
import pytest
import torch
from scores import without_type_checks

from ncsn_core.metrics.classifier import Classifier, accuracy, class_counts
from ncsn_core.metrics.features import Extractor
from ncsn_core.metrics.images import (
    Distances,
    dark_pixels,
    distances,
    frechet_distance,
    kernel_distance,
    level_statistics,
    measure,
    nearest_neighbors,
    precision_recall,
)
from ncsn_core.objectives import denoising_score_matching, sliced_score_matching
from ncsn_core.randomness import generator_for
from ncsn_core.schedules import geometric_ladder

SIGMAS = geometric_ladder(1.0, 0.01, 5)


def digit_distance(classifier, reference, batch_size=500):
    """The Fréchet distance from some real images, in a classifier's features."""
    extractor = Extractor("classifier", classifier, batch_size=batch_size)
    known = extractor(reference)
    return lambda images: frechet_distance(extractor(images), known)


@pytest.fixture(scope="module")
def classifier():
    """Untrained, with fixed weights, in evaluation mode: its features are as good as any here."""
    torch.manual_seed(0)
    return Classifier().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def digits(mnist_train):
    return mnist_train[:600].float() / 255


# --- losses and score norms --------------------------------------------------------------------


def shrink(x, sigma):
    return (0.3 - x) / (0.5 + sigma.reshape(-1, 1, 1, 1) ** 2)


def test_level_statistics_are_their_definitions():
    x = torch.rand(7, 1, 4, 4)
    got = level_statistics(shrink, x, SIGMAS, batch_size=7, generator=generator_for(0))
    generator = generator_for(0)
    for level, sigma in enumerate(SIGMAS):
        z = torch.randn(x.shape, generator=generator)
        score = shrink(x + sigma * z, sigma.expand(7))
        loss = 0.5 * (score + z / sigma).square().flatten(1).sum(1)
        torch.testing.assert_close(got.loss[level], loss)
        torch.testing.assert_close(got.score_norm[level], score.flatten(1).norm(dim=1))


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_level_statistics_cover_every_image_in_batches(batch_size):
    x = torch.rand(7, 1, 4, 4)
    asked = []

    def score(noised, sigma):
        asked.append(len(noised))
        return torch.zeros_like(noised)

    got = level_statistics(score, x, SIGMAS, batch_size=batch_size, generator=generator_for(0))
    assert got.loss.shape == got.score_norm.shape == (5, 7)
    assert (got.loss > 0).all()
    assert not got.score_norm.any()
    assert max(asked) <= batch_size
    assert sum(asked) == 5 * 7


def test_unweighted_losses_of_the_zero_score_grow_as_one_over_sigma_squared():
    x = torch.zeros(400, 1, 8, 8)
    got = level_statistics(lambda x, sigma: 0 * x, x, SIGMAS, generator=generator_for(0))
    weighted = got.loss.mean(dim=1) * SIGMAS**2
    # χ² with 64·400 degrees of freedom: a standard error of 0.28, four of them.
    torch.testing.assert_close(weighted, torch.full((5,), 32.0), atol=1.13, rtol=0)


def test_level_statistics_record_no_gradients():
    weight = torch.ones(1, requires_grad=True)
    got = level_statistics(lambda x, s: weight * x, torch.rand(2, 1, 2, 2), SIGMAS)
    assert not got.loss.requires_grad
    assert not got.score_norm.requires_grad


# --- Fréchet distance --------------------------------------------------------------------------


def frechet(a, b):
    """‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2(Σ₁Σ₂)^½) of two sets of features, unbiased covariances."""
    a, b = (features.double().numpy() for features in (a, b))
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = np.sqrt(np.linalg.eigvals(covariances[0] @ covariances[1]).astype(complex)).real.sum()
    difference = a.mean(0) - b.mean(0)
    return difference @ difference + sum(map(np.trace, covariances)) - 2 * root


def test_frechet_distance_is_its_formula(classifier, digits):
    real, fake = digits[:300], (digits[300:] + 0.2 * torch.rand(300, 1, 28, 28)).clamp(0, 1)
    got = digit_distance(classifier, real, batch_size=128)(fake)
    expected = frechet(classifier.features(real), classifier.features(fake))
    assert got == pytest.approx(expected, rel=1e-4)
    assert got > 0


def test_frechet_distance_of_a_set_from_itself_is_zero(classifier, digits):
    distance = digit_distance(classifier, digits)
    noise = distance(torch.rand(200, 1, 28, 28))
    assert distance(digits) == pytest.approx(0, abs=1e-6 * noise)


def test_frechet_distance_is_symmetric(classifier, digits):
    a, b = digits[:300], digits[300:].flip(-1)
    forth = digit_distance(classifier, a)(b)
    back = digit_distance(classifier, b)(a)
    assert forth == pytest.approx(back, rel=1e-4)


def test_frechet_distance_grows_with_the_noise(classifier, digits):
    distance = digit_distance(classifier, digits[:200])
    digits = digits[:200]
    z = torch.randn(digits.shape, generator=generator_for(0))
    grown = [distance((digits + sigma * z).clamp(0, 1)) for sigma in (0.0, 0.1, 0.2, 0.4)]
    assert grown == sorted(grown)
    assert grown[-1] > 2 * grown[1]


def test_frechet_distance_forgets_earlier_images_and_keeps_the_reference(classifier, digits):
    distance = digit_distance(classifier, digits[:300])
    first = distance(digits[300:])
    distance(torch.rand(50, 1, 28, 28))
    assert distance(digits[300:]) == first


def test_frechet_distance_does_not_depend_on_the_batches(classifier, digits):
    whole, parts = (
        digit_distance(classifier, digits[:300], batch_size=size)(digits[300:])
        for size in (300, 77)
    )
    assert whole == pytest.approx(parts, rel=1e-4)


@pytest.mark.parametrize("count", [0, 1])
def test_a_covariance_needs_two_images(classifier, digits, count):
    distance = digit_distance(classifier, digits[:100])
    with pytest.raises(ValueError, match=f"at least two images; got {count}"):
        distance(digits[:count])
    few, many = torch.rand(count, 3), torch.rand(5, 3)
    for sets in ((few, many), (many, few)):
        with pytest.raises(ValueError, match=f"at least two images; got {count}"):
            frechet_distance(*sets)


# --- kernel distance ---------------------------------------------------------------------------


def mmd(a, b):
    """Unbiased squared maximum mean discrepancy under (aᵀb/d + 1)³, by its double sums."""

    def kernel(x, y):
        return (x @ y / len(x) + 1) ** 3

    a, b = a.double().numpy(), b.double().numpy()
    n = len(a)
    within = sum(
        kernel(s[i], s[j]) for s in (a, b) for i in range(n) for j in range(n) if i != j
    ) / (n * (n - 1))
    return within - 2 * sum(kernel(x, y) for x in a for y in b) / n**2


def test_kernel_distance_is_its_formula():
    """A subset of all images is all of them, in another order."""
    a, b = torch.randn(30, 5), torch.randn(30, 5) + 0.5
    mean, std = kernel_distance(a, b, subsets=3, subset_size=30)
    assert mean == pytest.approx(mmd(a, b), rel=1e-9)
    assert std == pytest.approx(0, abs=1e-9)


def test_kernel_distance_of_subsets_is_the_mean_of_theirs():
    a, b = torch.randn(12, 3), torch.randn(15, 3)
    mean, std = kernel_distance(a, b, subsets=4, subset_size=6, seed=5)
    generator = torch.Generator().manual_seed(5)
    values = []
    for _ in range(4):  # from the reference first, as torchmetrics does
        real = b[torch.randperm(15, generator=generator)[:6]]
        values.append(mmd(a[torch.randperm(12, generator=generator)[:6]], real))
    assert mean == pytest.approx(np.mean(values), rel=1e-9)
    assert std == pytest.approx(np.std(values), rel=1e-9)


def test_kernel_distance_does_not_depend_on_the_count_and_the_frechet_distance_does():
    """Two samples of one distribution: the KID is about zero at each count, the FID is not."""
    a, b = torch.randn(2000, 16), torch.randn(4000, 16)
    few, many = (
        [
            frechet_distance(a[:n], b),
            kernel_distance(a[:n], b, subset_size=n // 2, subsets=20)[0],
        ]
        for n in (100, 2000)
    )
    assert few[0] > 5 * many[0] > 0
    spread = kernel_distance(a[:100], b, subset_size=50)[1]
    assert abs(few[1]) < 2 * spread
    assert abs(many[1]) < 2 * spread
    assert kernel_distance(a[:100] + 1, b, subset_size=50)[0] > 4 * spread


def in_balls(points, centers, neighbors):
    """The share of points within the balls of the centers, by the definition."""
    among = np.linalg.norm(centers[:, None] - centers, axis=2)
    radius = np.sort(among, axis=1)[:, neighbors]  # the nearest of all is the center itself
    return (np.linalg.norm(points[:, None] - centers, axis=2) <= radius).any(1).mean()


def test_precision_and_recall_are_their_definition():
    ours, real = (
        torch.randn(60, 3, generator=generator_for(1)),
        1.5 * torch.randn(80, 3, generator=generator_for(2)),
    )
    found = precision_recall(ours, real, neighbors=4)
    assert found.precision == pytest.approx(in_balls(ours.numpy(), real.numpy(), 4), abs=1e-6)
    assert found.recall == pytest.approx(in_balls(real.numpy(), ours.numpy(), 4), abs=1e-6)
    assert 0.3 < found.recall < found.precision < 1


def test_a_missing_mode_lowers_the_recall_and_strange_images_the_precision():
    real = torch.randn(200, 4, generator=generator_for(3))
    real[100:] += 20
    assert precision_recall(real, real) == (1, 1)
    one_mode = precision_recall(real[:100], real)
    assert one_mode.precision == 1
    assert one_mode.recall == 0.5
    strange = precision_recall(torch.cat([real, real + 100]), real)
    assert strange.precision == 0.5
    assert strange.recall == 1


@pytest.mark.parametrize("neighbors", [0, 5])
def test_precision_and_recall_need_more_images_than_neighbors(neighbors):
    with pytest.raises(ValueError, match="fewer than the 5 images"):
        precision_recall(torch.rand(9, 2), torch.rand(5, 2), neighbors=neighbors)


def test_class_counts_are_those_of_the_most_probable_classes(classifier, digits):
    found = class_counts(classifier, classifier.features(digits[:70]))
    assert found.tolist() == classifier(digits[:70]).argmax(1).bincount(minlength=10).tolist()
    assert found.sum() == 70


def test_kernel_distance_is_repeatable_and_leaves_the_global_generator_alone():
    a, b = torch.randn(50, 4), torch.randn(60, 4)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    first = kernel_distance(a, b, subset_size=10)
    assert torch.equal(torch.rand(3), expected)
    assert kernel_distance(a, b, subset_size=10) == first
    assert kernel_distance(a, b, subset_size=10, seed=1) != first


@pytest.mark.parametrize("size", [0, 1, 31])
def test_subsets_that_cannot_be_drawn_are_refused(size):
    with pytest.raises(ValueError, match=f"between 2 and the 30 images .*; got {size}"):
        kernel_distance(torch.randn(30, 4), torch.randn(40, 4), subset_size=size)
    with pytest.raises(ValueError, match="subsets must be at least 1"):
        kernel_distance(torch.randn(30, 4), torch.randn(40, 4), subset_size=5, subsets=0)


def test_numbers_come_with_what_they_were_measured_on(classifier, digits):
    extractor = Extractor("some classifier", classifier)
    sets = {"held out": digits[400:], "noise": torch.rand(300, 1, 28, 28)}
    got = measure(sets, digits[:400], extractor, (100, 200), subset_size=50)
    reference, seen = extractor(digits[:400]), extractor(digits[400:])
    kid, kid_std = kernel_distance(seen, reference, subset_size=50)
    assert got[200]["held out"] == Distances(
        fid=digit_distance(classifier, digits[:400])(digits[400:]),
        kid=kid,
        kid_std=kid_std,
        count=200,
        reference_count=400,
        subset_size=50,
        features="some classifier",
    )
    assert got[100]["held out"] == distances(seen[:100], reference, extractor, subset_size=50)
    for n in (100, 200):
        assert got[n]["noise"].fid > 10 * got[n]["held out"].fid
        assert got[n]["noise"].kid > 10 * got[n]["held out"].kid
    # The FID of real images shrinks with their number, though all come from one distribution.
    assert got[100]["held out"].fid > 1.2 * got[200]["held out"].fid


def test_a_set_with_too_few_images_is_named(classifier, digits):
    with pytest.raises(ValueError, match="few has 3 images; 10 are to be measured"):
        measure({"few": digits[:3]}, digits, Extractor("c", classifier), (5, 10), subset_size=2)


# --- the classifier, and pixels ----------------------------------------------------------------


def test_one_rule_for_bytes_unit_floats_arrays_and_three_equal_channels(classifier, digits):
    real, fake = digits[:300], digits[300:400]
    extractor = Extractor("c", classifier)
    distance, expected = digit_distance(classifier, real), digit_distance(classifier, real)(fake)
    given = (fake * 255).round().byte()
    for same in (
        given,
        given.numpy(),
        given.movedim(1, 3),
        given.expand(-1, 3, -1, -1),
        given[:, 0],
    ):
        assert distance(same) == pytest.approx(expected, rel=1e-5)
    for wrong in (2 * fake - 1, fake * 255, torch.randint(256, (9, 3, 28, 28)).byte()):
        with pytest.raises(ValueError, match=r"\[0, 1\]|gray ones are needed"):
            distance(wrong)
    with pytest.raises(ValueError, match=r"fake: floats are images in \[0, 1\]"):
        measure({"fake": 2 * fake - 1}, real, extractor, (50, 100))


def test_losses_of_an_image_network_take_images_in_the_unit_interval(record, digits):
    score = record.score()
    x, sigma = digits[:4], score.sigmas[[0, 3, 5, 9]]
    assert denoising_score_matching(score, x, sigma).shape == (4,)
    got = level_statistics(
        score, (x * 255).round().byte(), score.sigmas, generator=generator_for(0)
    )
    expected = level_statistics(score, x, score.sigmas, generator=generator_for(0))
    torch.testing.assert_close(got.loss, expected.loss)
    for wrong in (2 * x - 1, 255 * x):
        for loss in (denoising_score_matching, sliced_score_matching):
            with pytest.raises(ValueError, match=r"images in \[0, 1\]"):
                loss(score, wrong, sigma)
        with pytest.raises(ValueError, match=r"images in \[0, 1\]"):
            level_statistics(score, wrong, score.sigmas)
    with (
        without_type_checks(),
        pytest.raises(ValueError, match=r"of floats; got torch\.uint8"),
    ):
        denoising_score_matching(score, (x * 255).byte(), sigma)


def test_accuracy_counts_the_hits(classifier, digits):
    predicted = classifier(digits[:50]).argmax(1)
    labels = predicted.clone()
    labels[:20] = (labels[:20] + 1) % 10
    assert accuracy(classifier, digits[:50], predicted) == 1.0
    assert accuracy(classifier, digits[:50], labels, batch_size=7) == 0.6
    assert accuracy(classifier, (digits[:50] * 255).round().byte().numpy(), labels) == 0.6
    with pytest.raises(ValueError, match="divide by 255"):
        accuracy(classifier, digits[:50] * 255, labels)


def test_classifier_shapes(classifier, digits):
    assert classifier(digits[:3]).shape == (3, 10)
    features = classifier.features(digits[:3])
    assert features.shape == (3, 64)
    assert (features >= 0).all()
    assert Classifier(classes=5)(digits[:2]).shape == (2, 5)


def test_dark_pixels_are_black_in_every_image():
    images = torch.zeros(3, 1, 2, 2, dtype=torch.uint8)
    images[1, 0, 0, 1] = 1
    images[2, 0, 1, 1] = 255
    assert dark_pixels(images).tolist() == [[[True, False], [True, False]]]


def test_mnist_has_dark_pixels_at_its_border(mnist_train):
    dark = dark_pixels(mnist_train)
    assert dark.shape == (1, 28, 28)
    assert 40 < int(dark.sum()) < 100
    assert dark[0, 0, 0]
    assert not dark[0, 7:21, 7:21].any()


# --- nearest neighbors -------------------------------------------------------------------------


def test_neighbors_are_those_of_a_loop():
    images, reference = torch.rand(7, 1, 4, 4), torch.rand(30, 1, 4, 4)
    found = nearest_neighbors(images, reference, count=3, batch_size=4)
    for i, image in enumerate(images):
        distances = torch.stack([(image - other).norm() for other in reference])
        order = distances.argsort()[:3]
        assert torch.equal(found.index[i], order)
        torch.testing.assert_close(found.distance[i], distances[order])


def test_a_copy_of_a_training_image_is_found():
    reference = torch.rand(600, 1, 4, 4)
    found = nearest_neighbors(reference[[550, 3]], reference)
    assert found.index.tolist() == [[550], [3]]
    torch.testing.assert_close(found.distance, torch.zeros(2, 1), atol=5e-3, rtol=0)


def test_neighbors_of_bytes_are_those_of_the_same_floats():
    reference = torch.randint(256, (30, 1, 4, 4)).byte()
    images, unit = reference[[4, 9]], reference / 255
    assert nearest_neighbors(images, unit).index.tolist() == [[4], [9]]
    assert nearest_neighbors(unit[[4, 9]], reference).index.tolist() == [[4], [9]]
    last = images.movedim(1, 3).numpy()
    assert nearest_neighbors(last, reference.numpy()).index.tolist() == [[4], [9]]
    with pytest.raises(ValueError, match="divide by 255"):
        nearest_neighbors(images.float(), reference)


def test_distances_are_taken_between_features():
    """By brightness alone an image is nearest to one that looks different."""
    dark, left, right = torch.zeros(2, 2), torch.eye(2), torch.eye(2).flip(0)
    reference = torch.stack([dark, right])[:, None]
    image = left[None, None]
    assert nearest_neighbors(image, reference).index.item() == 0
    seen = nearest_neighbors(image, reference, features=lambda x: x.mean((2, 3)))
    assert seen.index.item() == 1
    assert seen.distance.item() == 0


def test_impossible_neighbors_are_refused():
    images = torch.rand(3, 1, 4, 4)
    for count in (0, 4):
        with pytest.raises(ValueError, match="between 1 and the 3 reference images"):
            nearest_neighbors(images, images, count=count)
    with without_type_checks(), pytest.raises(ValueError, match="one shape"):
        nearest_neighbors(images, torch.rand(3, 1, 4, 5))


class Given(torch.nn.Module):
    """The identity, in the form that torchmetrics expects of a network that computes features."""

    num_features, input_img_size = 8, (8,)

    def forward(self, x):
        return x


@pytest.mark.slow
def test_distances_are_those_of_torchmetrics():
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    draw = generator_for(0)
    features = 1 + 2 * torch.randn(40, 8, generator=draw)
    reference = torch.randn(60, 8, generator=draw)
    fid = FrechetInceptionDistance(feature=Given(), normalize=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Metric `Kernel Inception Distance` will save all")
        kid = KernelInceptionDistance(feature=Given(), subsets=5, subset_size=20)
    for metric in (fid, kid):
        metric.update(reference.double(), real=True)
        metric.update(features.double(), real=False)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(3)
        expected = [float(value) for value in kid.compute()]
    assert frechet_distance(features, reference) == pytest.approx(float(fid.compute()), rel=1e-9)
    found = kernel_distance(features, reference, subsets=5, subset_size=20, seed=3)
    assert found == pytest.approx(expected, rel=1e-9)
