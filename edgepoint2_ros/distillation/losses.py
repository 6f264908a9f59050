"""The losses of the distillation, as plain functions of torch tensors.

Descriptors are rows. The low-rank approximation, the orthogonal Procrustes and the similarity loss follow Yao et al.,
"EdgePoint2", arXiv 2504.17280, section 3: the teacher's descriptors are brought to the student's size, rotated onto the
student's by the closed-form orthogonal Procrustes solution, and compared by cosine. The others are this project's.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def principal_basis(descriptors: Tensor, size: int) -> Tensor:
    """Return the ``size`` largest right singular vectors (D, size) of the rows (N, D), the largest last.

    Their subspace preserves the rows' inner products as well as any ``size`` numbers per row can.
    """
    if size > descriptors.shape[1]:
        raise ValueError(f'cannot reduce descriptors of {descriptors.shape[1]} values to {size}')
    # The right singular vectors are the eigenvectors of the small D x D Gram matrix, in ascending order.
    _, basis = torch.linalg.eigh(descriptors.T @ descriptors)
    return basis[:, -size:]


def low_rank(descriptors: Tensor, size: int) -> Tensor:
    """Return the rows in their own :func:`principal_basis`, renormalised.

    Args:
        descriptors: (N, D) teacher descriptors.
        size: the student's descriptor size, at most D.

    Returns:
        (N, size), rows of unit length.
    """
    return F.normalize(descriptors @ principal_basis(descriptors, size), dim=1)


def procrustes(source: Tensor, target: Tensor) -> Tensor:
    """Return the orthogonal matrix (D, D) that minimises ``||source @ matrix - target||``; both are (N, D).

    Source: Schoenemann, "A generalized solution of the orthogonal Procrustes problem", 1966.
    """
    u, _, vh = torch.linalg.svd(source.T @ target)
    return u @ vh


def cosine_distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the mean over rows (N, D), or over the positions of maps (N, D, H, W), of 1 - cosine.

    It is 0 for equal directions and 2 for opposite ones.
    """
    return (1 - F.cosine_similarity(a, b, dim=1)).mean()


def orthogonal_procrustes_loss(teacher: Tensor, student: Tensor) -> Tensor:
    """Return how far the student's descriptors are from the teacher's up to one rotation or reflection of the space.

    Args:
        teacher: (N, D), already of the student's size (:func:`low_rank`).
        student: (N, D), any length of rows.

    Returns:
        The mean cosine distance after the best orthogonal matrix, which is solved for and carries no gradient.
    """
    with torch.no_grad():
        rotation = procrustes(teacher, F.normalize(student, dim=1))
    return cosine_distance(teacher @ rotation, student)


def contrastive_loss(
    a: Tensor, b: Tensor, xy_a: Tensor, xy_b: Tensor, temperature: float = 0.06, radius: float = 5.0
) -> Tensor:
    """Return the symmetric InfoNCE loss of descriptors of the same points in two views.

    Each row should be closer to its partner than to every other row of the other view. Rows whose points lie within
    ``radius`` of each other in either view are not negatives: their descriptors may well be similar.
    Source: van den Oord et al., arXiv 1807.03748.

    Args:
        a, b: (N, D) descriptors; row i of both is the same point.
        xy_a, xy_b: (N, 2) positions in pixels of each view.
        temperature: cosines are divided by it.
        radius: in pixels.
    """
    logits = F.normalize(a, dim=1) @ F.normalize(b, dim=1).T / temperature
    near = (torch.cdist(xy_a, xy_a) < radius) | (torch.cdist(xy_b, xy_b) < radius)
    near.fill_diagonal_(False)
    logits = logits.masked_fill(near, float('-inf'))
    partners = torch.arange(len(a), device=a.device)
    return (F.cross_entropy(logits, partners) + F.cross_entropy(logits.T, partners)) / 2


def relational_loss(
    student: Tensor, student_others: Tensor, teacher: Tensor, teacher_others: Tensor, temperature: float = 0.07
) -> Tensor:
    """Return how far the student's ranking of places in another view is from the teacher's; 0 if they are equal.

    The mean Kullback-Leibler divergence of the softmax of cosines. No correspondences are needed, and the teacher's
    descriptors may be longer than the student's.
    Source: Tian et al., "Contrastive representation distillation", arXiv 1910.10699, without its labels.

    Args:
        student, teacher: (N, D) and (N, C) descriptors of the same points of one view.
        student_others, teacher_others: (M, D) and (M, C) descriptors of the same places of the other view.
        temperature: cosines are divided by it.
    """

    def ranking(points: Tensor, others: Tensor) -> Tensor:
        cosines = F.normalize(points, dim=1) @ F.normalize(others, dim=1).T
        return F.log_softmax(cosines / temperature, dim=1)

    own, taught = ranking(student, student_others), ranking(teacher, teacher_others)
    return F.kl_div(own, taught, reduction='batchmean', log_target=True)


def detection_loss(student: Tensor, teacher: Tensor, floor: float = -8.0) -> Tensor:
    """Return how far the student's score map is from the teacher's; 0 if they are equal.

    The sum of two parts: the binary Kullback-Leibler divergence of the keypoint probabilities, divided by the teacher's
    probability mass because keypoints are rare; and the smooth L1 distance of the logits, which determine the order of
    the keypoints. Below ``floor`` a logit only means "no keypoint" and its value does not matter.

    Args:
        student, teacher: raw logits of one shape.
    """
    target = torch.sigmoid(teacher)
    divergence = F.binary_cross_entropy_with_logits(student, target, reduction='sum')
    divergence = divergence - F.binary_cross_entropy_with_logits(teacher, target, reduction='sum')
    distance = F.smooth_l1_loss(student.clamp(min=floor), teacher.clamp(min=floor))
    return divergence / target.sum().clamp(min=1.0) + distance
