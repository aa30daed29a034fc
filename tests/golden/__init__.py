"""Three jobs whose ingredients are kept, so that no change makes anew what is cached."""
