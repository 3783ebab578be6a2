"""Section `method` of a training: a file for each method, and files of settings that several methods have.

`Method` is the union of those that distil; method `denoising` trains teachers.
"""

from typing import Annotated

from pydantic import Field

from dmd.config.methods.boot import Boot
from dmd.config.methods.consistency import Consistency
from dmd.config.methods.ctm import Ctm
from dmd.config.methods.dfno import Dfno
from dmd.config.methods.diff_instruct import DiffInstruct
from dmd.config.methods.dmd import Dmd
from dmd.config.methods.dmd2 import Dmd2
from dmd.config.methods.ect import Ect
from dmd.config.methods.f_distill import FDistill
from dmd.config.methods.gan import Gan
from dmd.config.methods.imm import Imm
from dmd.config.methods.lcm import Lcm
from dmd.config.methods.mean_flow import MeanFlow
from dmd.config.methods.meng import Meng
from dmd.config.methods.moment_matching import MomentMatching
from dmd.config.methods.progressive import Progressive
from dmd.config.methods.rectified_flow import RectifiedFlow
from dmd.config.methods.scm import Scm
from dmd.config.methods.sid import Sid
from dmd.config.methods.tdm import Tdm
from dmd.config.methods.tract import Tract
from dmd.config.methods.ufogen import Ufogen

Method = Annotated[
    Dmd
    | Dmd2
    | Tdm
    | Progressive
    | Consistency
    | Sid
    | DiffInstruct
    | FDistill
    | Gan
    | Ufogen
    | RectifiedFlow
    | Ect
    | MomentMatching
    | MeanFlow
    | Scm
    | Tract
    | Boot
    | Lcm
    | Meng
    | Dfno
    | Imm
    | Ctm,
    Field(discriminator="name"),
]
