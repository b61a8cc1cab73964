"""A recipe's SQL that would mean something else on Spark is refused; it takes neither Spark nor Java to tell."""

import pytest

from twotower.data.spark.dialect import NotAgreedError, in_spark


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("dayofweek(timestamp) = 1", "DAYOFWEEK"),
        ("log(rating) > 1", "LOG"),
        ("rating::INTEGER = 4", "CAST(rating AS INT)"),
        ("date_trunc('decade', timestamp) = timestamp", "DATE_TRUNC('DECADE', timestamp)"),
        ("date_trunc('day', DATE '2026-11-01') = timestamp", "DATE_TRUNC('DAY', CAST('2026-11-01' AS DATE))"),
        ("(coalesce(device, 'no'))::BOOLEAN", "CAST((COALESCE(device, 'no')) AS BOOLEAN)"),
        ("date_diff('day', timestamp, TIMESTAMP '2026-11-01') < 7", "DATE_DIFF"),
        ("rating // 2 = 1", "rating // 2"),
        ("round(rating, 2) > 1", "ROUND(rating, 2)"),
        ("upper(device) = 'SS'", "UPPER(device)"),  # Of ß, to Java.
        ("user_id IN (SELECT user_id FROM other)", "SELECT"),
        ("random() < 0.5", "RANDOM"),
        ("device = 3", "a text compared to a number"),
        ("timestamp < '2026-11-01 00:00:00+02'", "a moment with a zone"),
        ("rating >", "no SQL expression"),
        ("rating > 1; DROP TABLE interactions", "DROP"),
    ],
)
def test_what_means_something_else_on_spark_is_refused(expression: str, found: str) -> None:
    with pytest.raises(NotAgreedError) as fault:
        in_spark(expression, texts=("device", "user_id"))
    assert found in str(fault.value)
    assert "\n" not in str(fault.value)
