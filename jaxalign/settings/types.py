"""The ranges of values that several settings have."""

from __future__ import annotations

from typing import Annotated, Literal

from annotated_types import Ge, Gt, Interval, MinLen

Text = Annotated[str, MinLen(1)]
Count = Annotated[int, Gt(0)]
WholeNumber = Annotated[int, Ge(0)]
Rate = Annotated[float, Ge(0)]
Decay = Annotated[float, Interval(ge=0, lt=1)]
Dtype = Literal["float32", "bfloat16", "float16"]
