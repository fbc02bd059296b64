"""What rows cost, from the policy that the servers announce. docs/privacy.md, section "Mechanisms", is the
specification; everything is integer arithmetic, in units of 1e-18 rho until the end.
"""

import interface

prediction, _ = interface.load()
ATTO = 10**18
MILLION = 10**6


def round_up(numerator, denominator):
    """The quotient of two positive whole numbers, rounded up."""
    return -(-numerator // denominator)


def exponential_of_minus(whole, fraction):
    """A little above exp(-(whole + fraction / 1e18)) in units of 1e-18, and never below one unit."""
    if whole >= 42:  # exp(-42) is below one unit
        return 1
    upper = lower_power = upper_power = ATTO
    # Partial sums of 1 - x + x^2/2 - ... that end with an added term lie above exp(-x).
    for term in range(1, 19):
        upper_power = round_up(upper_power * fraction, ATTO * term)
        lower_power = lower_power * fraction // (ATTO * term)
        upper += upper_power if term % 2 == 0 else -lower_power
    for _ in range(whole):
        upper = round_up(upper * 367_879_441_171_442_322, ATTO)  # a little above exp(-1)
    return max(upper, 1)


def price(mechanism, squared, bins):
    """The price in nano-rho of noise on so many bins, which one privacy unit moves by sqrt(squared) votes."""
    width = mechanism.parameter_millionths
    cost = round_up(squared * ATTO * MILLION**2, 2 * width**2)
    if mechanism.kind == prediction.NoiseMechanism.KIND_DISCRETE_GAUSSIAN:
        # Two servers' noise is not quite one discrete Gaussian: (10 bins / 4) exp(-pi^2 sigma^2 / 2).
        exponent, units = 4_934_802_200_544 * width**2, 10**12 * MILLION**2
        tail = exponential_of_minus(exponent // units, exponent % units // (units // ATTO))
        cost += round_up(10 * bins * tail, 4)
    return round_up(cost, 10**9)


def row_prices(task):
    """The prices of one row in nano-rho: of the threshold test, 0 if there is none, and of the answer."""
    votes = task.models_per_owner if task.privacy_unit == prediction.PRIVACY_UNIT_OWNER else 1
    # A vote moves two counts by one, and the largest count by one.
    answer = price(task.mechanism, 2 * votes**2, task.classes)
    if not task.HasField("threshold"):
        return 0, answer
    return price(task.threshold.mechanism, votes**2, 1), answer
