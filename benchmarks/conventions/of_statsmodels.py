import numpy as np
from answers import answer, arrays
from statsmodels.genmod.families import Binomial

answer("statsmodels", {"Binomial": Binomial, **arrays(np.asarray)})
