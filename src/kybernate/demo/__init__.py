"""`kybernate demo`, and the programs it runs: model servers and a training job."""
