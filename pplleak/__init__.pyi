# The names of the face, and where they are from: read by type checkers, and by lazy_loader when one is first asked for.
from .client import Client as Client
from .client.training import LocalTraining as LocalTraining
from .errors import BadInput as BadInput
from .federation.capture.record import record as record
from .federation.observation import Observation as Observation
from .federation.protection import Protection as Protection
from .federation.scenario import Scenario as Scenario
from .federation.scenario import observe as observe
from .federation.stored import load as load
from .federation.stored import save as save
from .posterior import Posterior as Posterior
from .settings import Named as Named
from .studies.attack.attack import attack as attack
from .studies.attack.attack import believe as believe
from .studies.attack.attack import choose as choose
from .studies.attack.report import plot as plot
from .studies.compare.compare import compare as compare

__all__ = [
    "BadInput",
    "Client",
    "LocalTraining",
    "Named",
    "Observation",
    "Posterior",
    "Protection",
    "Scenario",
    "attack",
    "believe",
    "choose",
    "compare",
    "load",
    "observe",
    "plot",
    "record",
    "save",
]
