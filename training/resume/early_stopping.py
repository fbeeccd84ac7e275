"""`--early_stopping_patience`: transformers' callback, exact in a resumed run and patient with a warm-up."""

from transformers import EarlyStoppingCallback


class EarlyStopping(EarlyStoppingCallback):
    """Stops a training whose validation metric has stopped getting better.

    Args:
        patience: evaluations in a row that were not the best.
        warm_up: steps in which only the teacher is trained; what the student answers until then counts for nothing.
    """

    def __init__(self, early_stopping_patience: int, warm_up: int = 0):
        super().__init__(early_stopping_patience)
        self.warm_up = warm_up

    def on_train_begin(self, args, state, control, **kwargs):
        saved = state.stateful_callbacks.get(type(self).__name__, {}).get("attributes", {})
        self.early_stopping_patience_counter = saved.get("early_stopping_patience_counter", 0)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True  # it had stopped here
        super().on_train_begin(args, state, control, **kwargs)

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        # After a training the test split is evaluated in the same way, where nothing is chosen any more.
        if state.global_step > self.warm_up and any(name.startswith("eval_") for name in metrics):
            super().on_evaluate(args, state, control, metrics, **kwargs)
