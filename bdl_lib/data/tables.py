r"""Real tables that ship with scikit-learn: breast cancer, diabetes, wine. Nothing is downloaded.

Each is split at random into a part to learn from and a part to be judged on (class by class, so that both parts have
all classes in the same proportion), and given in standard units: every column has mean 0 and standard deviation 1 on
the training part, and the test part is changed by the same amounts.

Chapter: book/02-networks.ipynb
"""

import torch
from torch import Tensor

from bdl_lib.data.records import Classification, Regression, Split, standardiser

__all__ = ["breast_cancer", "diabetes", "wine"]


def breast_cancer(
    *,
    generator: torch.Generator,
    test_fraction: float = 0.25,
    standardise: bool = True,
    dtype: torch.dtype | None = None,
) -> Split:
    r"""569 tumours, malignant (0) or benign (1), from 30 measurements of cell nuclei on a digitised image.

    Args:
        generator: draws the split; its device is the data's device.
        test_fraction: share of the rows in the test part, between 0 and 1.
        standardise: False keeps the units of the source.
        dtype: of the inputs; PyTorch's default dtype if not given.

    Returns:
        A :class:`Split` of two :class:`Classification` records.

    Raises:
        ValueError: if ``test_fraction`` is not between 0 and 1, or leaves a part without one of the classes.

    Source: Wolberg, Mangasarian, Street and Street (1993), UCI Machine Learning Repository, doi:10.24432/C5DW2B.
    """
    from sklearn.datasets import load_breast_cancer

    units = "30 measurements of cell nuclei"
    source = "Wisconsin Diagnostic Breast Cancer, UCI, by way of scikit-learn; CC BY 4.0"
    return _classes(load_breast_cancer(), units, source, generator, test_fraction, standardise, dtype)


def wine(
    *,
    generator: torch.Generator,
    test_fraction: float = 0.25,
    standardise: bool = True,
    dtype: torch.dtype | None = None,
) -> Split:
    r"""178 wines from three growers in one region of Italy, told apart by 13 chemical measurements.

    Args:
        generator: draws the split; its device is the data's device.
        test_fraction: share of the rows in the test part, between 0 and 1.
        standardise: False keeps the units of the source.
        dtype: of the inputs; PyTorch's default dtype if not given.

    Returns:
        A :class:`Split` of two :class:`Classification` records.

    Raises:
        ValueError: if ``test_fraction`` is not between 0 and 1, or leaves a part without one of the classes.

    Source: Aeberhard and Forina (1992), UCI Machine Learning Repository, doi:10.24432/C5PC7J.
    """
    from sklearn.datasets import load_wine

    source = "Wine recognition, UCI, by way of scikit-learn; CC BY 4.0"
    return _classes(load_wine(), "13 chemical measurements", source, generator, test_fraction, standardise, dtype)


def diabetes(
    *,
    generator: torch.Generator,
    test_fraction: float = 0.25,
    standardise: bool = True,
    dtype: torch.dtype | None = None,
) -> Split:
    r"""442 patients: how far diabetes progressed in a year, from 10 measurements at its start.

    Args:
        generator: draws the split; its device is the data's device.
        test_fraction: share of the rows in the test part, between 0 and 1.
        standardise: False keeps the units of the source; True changes the targets too, and ``target_scaling`` has the
            way back.
        dtype: of inputs and targets; PyTorch's default dtype if not given.

    Returns:
        A :class:`Split` of two :class:`Regression` records.

    Raises:
        ValueError: if ``test_fraction`` is not between 0 and 1, or leaves fewer than two rows to learn from or none to
            be judged on.

    Source: Efron, Hastie, Johnstone and Tibshirani (2004), doi:10.1214/009053604000000067.
    """
    from sklearn.datasets import load_diabetes

    table = load_diabetes(scaled=False)
    inputs, targets = (torch.as_tensor(x, dtype=dtype or torch.get_default_dtype()) for x in (table.data, table.target))
    inputs, targets = inputs.to(generator.device), targets.to(generator.device)[:, None]
    train, test = _split([torch.arange(len(inputs))], test_fraction, generator)
    input_scaling = target_scaling = None
    if standardise:
        input_scaling, target_scaling = standardiser(inputs[train]), standardiser(targets[train])
        inputs, targets = input_scaling(inputs), target_scaling(targets)
    card = (
        "{} of 442 rows; age, sex, body-mass index, blood pressure, 6 blood measurements, and the progression after a "
        "year; Efron et al. (2004), by way of scikit-learn (BSD-3-Clause), the data's own licence is not stated"
    )
    parts = [Regression(inputs[rows], targets[rows, 0], card.format(len(rows))) for rows in (train, test)]
    return Split(*parts, tuple(table.feature_names), input_scaling, target_scaling)


def _classes(table, units, source, generator, test_fraction, standardise, dtype):
    inputs = torch.as_tensor(table.data, dtype=dtype or torch.get_default_dtype()).to(generator.device)
    labels = torch.as_tensor(table.target).long().to(generator.device)
    class_names, feature_names = tuple(map(str, table.target_names)), tuple(map(str, table.feature_names))
    rows_of_classes = [(labels == c).nonzero().flatten() for c in range(len(class_names))]
    train, test = _split(rows_of_classes, test_fraction, generator)
    scaling = standardiser(inputs[train]) if standardise else None
    inputs = scaling(inputs) if standardise else inputs
    parts = [
        Classification(
            inputs[rows],
            labels[rows],
            class_names,
            feature_names,
            f"{len(rows)} of {len(inputs)} rows; {units}; {source}",
        )
        for rows in (train, test)
    ]
    return Split(*parts, feature_names, scaling, None)


def _split(groups: list[Tensor], test_fraction: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Rows to learn from and rows to be judged on, the same share of every group in each, in random order."""
    if not 0 < test_fraction < 1:
        raise ValueError(f"test_fraction must be between 0 and 1, got {test_fraction}")
    train, test = [], []
    for rows in groups:
        num_test = round(test_fraction * len(rows))
        if not 1 <= num_test <= len(rows) - 2:
            raise ValueError(f"test_fraction must leave rows of every class in both parts, got {test_fraction}")
        rows = rows.to(generator.device)[torch.randperm(len(rows), generator=generator, device=generator.device)]
        test.append(rows[:num_test])
        train.append(rows[num_test:])
    parts = torch.cat(train), torch.cat(test)
    return tuple(rows[torch.randperm(len(rows), generator=generator, device=rows.device)] for rows in parts)
