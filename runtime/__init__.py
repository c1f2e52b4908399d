"""What makes the rooms one house: settings, logging, Temporal, interceptors, dispatcher, wiring."""
