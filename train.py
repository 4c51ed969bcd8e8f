"""Fine-tune a language model to predict which of two answers a person prefers, on one fold.

python train.py                                  # SmolLM2 on the simulated arena, any machine
python train.py model=llama3 prompt=v2 data=lmsys data.path=train.csv fold=0
python train.py -m prompt=v1,v2 fold=0,1         # a sweep; cv=5 instead of -m: all folds, merged at the end
python train.py resume=RUN                       # resume after an interruption
torchrun --nproc-per-node=2 train.py …           # on two GPUs

An installed package has the same command as ``lmsys-unsloth train``.
"""

import sys

from lmsys_unsloth.commands.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
