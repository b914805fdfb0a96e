import paddle
import paddle.nn.functional as F
from answers import answer, arrays

answer("paddlepaddle", {**vars(F), **arrays(paddle.to_tensor)})
