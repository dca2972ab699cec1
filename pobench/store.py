"""The run folder: written while a job runs, read as frames. Nothing else holds state.

    runs/<setting>/<loss>-<8 hex>/     one training job: config.yaml, environment.json, steps.jsonl,
                                       heldout.parquet, answers.parquet, verdicts.parquet, scores.json,
                                       model/, finished.json (written last: its presence means complete)
    runs/<setting>/start-<8 hex>/      the start model on the same evaluation, without steps

Frames (tidy, one row each; `run` is `<setting>/<folder>` and joins them all):

runs      run, setting, kind ("start" | "loss"), loss (name, "start"), title (as a table prints it), seed (int, -1 for
          start), settings (JSON: the loss's settings), lr, epochs, batch_size, start (run id of its start model), pairs
          (trained on), seconds (training wall time), peak_memory (bytes), tokens (useful tokens trained on), status
          ("finished" | "failed" | "unfinished"), reason (of a failure), order (hash of the data order), protocol (int)
steps     run, step (1..), epoch (float), loss, lr, grad_norm, rewards/chosen, rewards/rejected, rewards/margins,
          rewards/accuracies, logps/chosen, logps/rejected (mean over pairs of summed nats), logps/chosen_per_token,
          logps/rejected_per_token, saturated (share of pairs whose |gradient weight| < 1e-4), kl (nan unless used), seconds
heldout   run, pair (id), chosen_logp, rejected_logp (summed nats), chosen_length, rejected_length (tokens),
          reference_chosen_logp, reference_rejected_logp, loss, chosen_reward, rejected_reward (the run's own loss; nan
          for start)
answers   run, prompt (id), sample (0..), kind (of demand, or ""), topic, instruction (text), text (untrusted), tokens,
          finished (bool: ended by itself)
verdicts  run, prompt, sample, judge, score (in [0, 1]; nan where the judge gave none)
scores    run, metric, value, low, high, n, better ("higher" | "lower" | "")
audit     setting, fault, count, rows (JSON list of row numbers)
"""
