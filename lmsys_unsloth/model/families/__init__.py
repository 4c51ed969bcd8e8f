from lmsys_unsloth.model.families import known as known  # registers the families
