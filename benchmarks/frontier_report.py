def write_report(*a): raise SystemExit("later")
