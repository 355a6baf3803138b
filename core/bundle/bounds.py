"""Types of a manifest's values, with their bounds: for msgspec's structs."""

from typing import Annotated

from msgspec import Meta

LEAST_SIGMA2, LARGEST_SIGMA2 = 1e-30, 1e30  # beyond these float64 overflows or loses every digit
MOST_NUMBERS = 2**24  # of one input
MOST_AXES = 6  # of an array
LONGEST = 300  # characters of a title or the name of a class

Text = Annotated[str, Meta(max_length=LONGEST)]
Title = Annotated[str, Meta(min_length=1, max_length=LONGEST)]
Note = Annotated[str, Meta(max_length=10_000)]
Word = Annotated[str, Meta(pattern=r"\A[a-z0-9_]{1,50}\Z")]
Reference = Annotated[str, Meta(pattern=r"\A\w+(\.\w+)*:\w+\Z", max_length=200)]  # "module.path:function"
Digest = Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Size = Annotated[int, Meta(ge=0, le=2**50)]
Count = Annotated[int, Meta(ge=1, le=2**31)]
Seed = Annotated[int, Meta(ge=0, le=2**63 - 1)]
Share = Annotated[float, Meta(ge=0, le=1)]
Positive = Annotated[float, Meta(gt=0, le=1e30)]
Variance = Annotated[float, Meta(ge=LEAST_SIGMA2, le=LARGEST_SIGMA2)]
Scale = Annotated[float, Meta(ge=-1e6, le=1e6)]
Deviation = Annotated[float, Meta(ge=1e-6, le=1e6)]
Distance = Annotated[float, Meta(ge=0, le=1e30)]
Steps = Annotated[int, Meta(ge=0, le=10**6)]
Label = Annotated[int, Meta(ge=0, le=10_000)]
Bit = Annotated[int, Meta(ge=0, le=1)]
Side = Annotated[int, Meta(ge=1, le=1024)]
