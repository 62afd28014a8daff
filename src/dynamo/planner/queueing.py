"""How long requests wait for one of several workers. Pure.

Arrivals that do not know of each other (Poisson), and prompts whose lengths scatter about as much as they are long on
average (exponential): M/M/c. What a request meets is Sakasegawa's approximation of Erlang's C (An approximation formula
Lq = a·rho^b/(1-rho), Annals of the Institute of Statistical Mathematics 29, 1977), exact for one worker; the wait of
those who wait at all is exponential with the mean S/(c·(1-rho)).
"""

import math

from dynamo.planner.bisection import highest


def wait_probability(utilisation: float, workers: float) -> float:
    """That all workers are busy when a request comes. 0 <= utilisation < 1, workers >= 1."""
    return math.pow(utilisation, math.sqrt(2 * (workers + 1)) - 1)


def mean_wait_s(utilisation: float, workers: float, service_s: float) -> float:
    """Of all requests, those that do not wait among them."""
    return wait_probability(utilisation, workers) * service_s / (workers * (1 - utilisation))


def late_share(utilisation: float, workers: float, service_s: float, wait_s: float) -> float:
    """The share of requests that wait for longer than `wait_s`: 1 when the workers cannot keep up."""
    if utilisation >= 1:
        return 1.0
    if service_s <= 0:
        return 0.0
    share = wait_probability(utilisation, workers)
    return share * math.exp(-workers * (1 - utilisation) * max(wait_s, 0.0) / service_s)


def highest_utilisation(workers: float, service_s: float, wait_s: float, late: float) -> float:
    """With which no more than the share `late` of the requests waits for longer than `wait_s`."""
    return highest(0.0, 1.0, lambda utilisation: late_share(utilisation, workers, service_s, wait_s) <= late)
