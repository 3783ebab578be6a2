"""Section `method` of a training: a file for each method, and three of settings that several methods have.

`Method` is the union of those that distil; method `denoising` trains teachers.
"""

from typing import Annotated

from pydantic import Field

from dmd.config.methods.consistency import Consistency
from dmd.config.methods.dmd import Dmd
from dmd.config.methods.dmd2 import Dmd2
from dmd.config.methods.progressive import Progressive
from dmd.config.methods.rectified_flow import RectifiedFlow
from dmd.config.methods.sid import Sid
from dmd.config.methods.tdm import Tdm

Method = Annotated[Dmd | Dmd2 | Tdm | Progressive | Consistency | Sid | RectifiedFlow, Field(discriminator="name")]
