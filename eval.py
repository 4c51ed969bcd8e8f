"""Score a trained run again, an untrained model, or several runs together.

python eval.py run=RUN                           # exactly as the run was configured
python eval.py run=RUN data.path=test.csv        # other rows; unlabelled ones give submission.csv
python eval.py runs=[RUN0,RUN1]                  # merge folds into a cross-validation, average models
python eval.py runs=[RUN0,RUN1] data.path=test.csv eval.stack=true     # average, calibrated and stacked
python eval.py model=llama3 prompt=v1 data=lmsys data.path=train.csv   # zero-shot
python eval.py run=RUN resume=OUTPUT             # after an interruption: the same command, and its output
python eval.py cv=DIR data.path=test.csv         # the folds that DIR merged; gives submission.csv
python eval.py run=RUN engine=llama_cpp engine.path=FILE.gguf engine.check=100   # compare an engine
torchrun --nproc-per-node=2 eval.py run=RUN      # on two GPUs
python eval.py model=llama3 data=lmsys data.path=train.csv debug=parity   # compare its forward passes

An installed package has the same command as ``lmsys-unsloth eval``.
"""

import sys

from lmsys_unsloth.commands.eval import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
