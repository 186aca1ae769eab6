"""What makes a run finite and useless: measured, proved, said once. Imports only leaves; guard and above use it."""
