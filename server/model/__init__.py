"""The GPT, its weights and its inputs: functions of tensors. Knows no sequence and no scheduler."""
