"""Plain NumPy float64 oracles, written from the definitions and not from the library's formulas."""

import numpy as np
import scipy.linalg
import scipy.special


def softmax_jacobian(p):
    return np.diag(p) - np.outer(p, p)


def recalibration_matrix(p, gram, strength):
    """Solves c J^2 R G + R = I as one K^2 x K^2 linear system."""
    J = softmax_jacobian(np.asarray(p, np.float64))
    K = len(J)
    system = strength * np.kron(J @ J, np.asarray(gram, np.float64).T) + np.eye(K * K)
    return np.linalg.solve(system, np.eye(K).ravel()).reshape(K, K)


def recalibration_matrix_by_eigh(p, gram, strength):
    """The same in the eigenbases of J and G, where the equation is diagonal; for large K."""
    j, U = np.linalg.eigh(softmax_jacobian(np.asarray(p, np.float64)))
    g, V = np.linalg.eigh(np.asarray(gram, np.float64))
    return U @ (U.T @ V / (1 + strength * np.outer(j**2, g))) @ V.T


def recalibrated_by_eigh(logits, probs, gram, strengths):
    """R z, (S, B, K), for all strengths from the same eigenbases."""
    g, V = np.linalg.eigh(np.asarray(gram, np.float64))
    j, U = np.linalg.eigh(np.stack([softmax_jacobian(p) for p in np.asarray(probs, np.float64)]))
    terms = (np.asarray(logits, np.float64) @ V)[:, None] * (np.swapaxes(U, -1, -2) @ V)
    diagonals = [1 + c * j[:, :, None] ** 2 * g for c in strengths]
    return np.stack([np.einsum("bij,bj->bi", U, (terms / d).sum(axis=-1)) for d in diagonals])


def recalibration_matrix_by_sylvester(p, gram, strength):
    """A R + R B = C with A = c J^2, B = C = G^-1, by SciPy; G must be invertible."""
    J = softmax_jacobian(np.asarray(p, np.float64))
    inverse = np.linalg.inv(np.asarray(gram, np.float64))
    return scipy.linalg.solve_sylvester(strength * J @ J, inverse, inverse)


def statistical_fusion(logits, prior):
    """Multiplies posteriors, divides by the prior to the power M - 1, normalises."""
    posteriors = [
        scipy.special.softmax(np.asarray(z, np.float64), axis=-1) for z in logits.values()
    ]
    joint = np.prod(posteriors, axis=0) / np.asarray(prior, np.float64) ** (len(posteriors) - 1)
    return joint / joint.sum(axis=-1, keepdims=True)


def robust_fusion(logits, grams, prior, perturbed, gamma, num_iterations=1):
    """Sample by sample with dense solves; returns probabilities and norms of the Jacobian."""
    log_prior = np.log(np.asarray(prior, np.float64))
    num_modalities = len(logits)
    all_probs, norms = [], []
    for b in range(len(next(iter(logits.values())))):
        z = {name: np.asarray(array[b], np.float64) for name, array in logits.items()}
        p = statistical_fusion({name: array[None] for name, array in z.items()}, prior)[0]
        R = {}
        for _ in range(num_iterations):
            R = {m: recalibration_matrix(p, grams[m], (1 - gamma) / gamma) for m in perturbed}
            total = sum(R[m] @ z[m] if m in perturbed else z[m] for m in z)
            p = scipy.special.softmax(total - (num_modalities - 1) * log_prior)
        J = softmax_jacobian(p)
        squares = [np.trace(J @ R[m] @ grams[m] @ R[m].T @ J) for m in perturbed]
        all_probs.append(p)
        norms.append(np.sqrt(sum(squares)))
    return np.stack(all_probs), np.array(norms)
